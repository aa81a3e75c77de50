"""The training loop that finetune and distill share.

`sampler` and `augment` say which pixels a step sees, `pictures` makes batches of them, `optimizer` says how weights
move, `precision` in which arithmetic; `run` is what is alive, `checkpoint` keeps it; `loop` puts them together.
Everything a step sees is a pure function of (seed, step): a resumed run repeats an uninterrupted one exactly.
"""
