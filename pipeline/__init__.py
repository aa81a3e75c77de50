"""How a run is planned, cached, judged and told: the top layer."""

import os

# Threads of torch's OpenMP spin while they wait for each other. Beside another program on the same cores they wait for
# one that is not running, and a small model trains slower by more than an order of magnitude. Asleep, they do not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
