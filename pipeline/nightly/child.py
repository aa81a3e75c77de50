"""A build as a child process that does not outlive who asked for it: this text is run by `python -P -c`.

The parent holds the other end of standard input. When that closes, the build is interrupted as by Ctrl-C, which loses
nothing, and killed with all it started where it does not leave.
"""

import os
import signal
import sys
import threading
import time

LEAVE_SECONDS = 20


def _leave_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LEAVE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.argv[0] = "vitrim"
    from pipeline.cli.app import main

    main()
