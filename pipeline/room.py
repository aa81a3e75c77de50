"""Whether a model fits into a target's memory, as far as that can be said before anything is built."""

from targets.measure.floor import BYTES
from targets.profile import TargetProfile

GB = 1e9


def lacking_room(profile: TargetProfile, params: int, precisions: tuple[str, ...]) -> str | None:
    """Why weights alone do not fit into the memory of the board, in one line; None where they may, or it is not known.

    params: of the model that is compiled. precisions: of the candidates. Activations and the runtime come on top.
    """
    memory = profile.board.memory_gb
    if memory is None or not params or not precisions:
        return None
    needed = {one: params * BYTES[one] / GB for one in dict.fromkeys(("fp32", *precisions))}
    fit = [one for one in precisions if needed[one] <= memory.value]
    if needed["fp32"] <= memory.value:
        return None
    smallest = min(precisions, key=lambda one: needed[one])
    head = f"weights alone take {needed['fp32']:.1f} GB in fp32, the target has {memory.value:g} GB"
    if not fit:
        return f"{head}, and {needed[smallest]:.1f} GB in {smallest}: nothing fits; choose a smaller model"
    return f"{head}: the baseline does not fit, {', '.join(dict.fromkeys(fit))} may"
