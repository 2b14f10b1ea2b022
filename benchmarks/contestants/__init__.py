"""Every contestant of the speed benchmark. One measurement is one process (`__main__.py`).

measuring.py            seconds, peak memory, what a contestant hands back
workloads.py            the texts, pairs and prompts that all contestants get
models.py               the model and the adapters, as each library loads them
ours.py                 minialign: a step, rollouts, writing
trl_step.py             TRL + PEFT: a step
transformers_writing.py transformers: rollouts, writing
llama_cpp_writing.py    llama.cpp: writing
heads.py                log-probabilities from hidden states, in four ways
machine.py              the limits of the machine itself
tasks.py                which contestant does which task

A contestant imports its library when it runs: one that is not installed stops no other.
"""
