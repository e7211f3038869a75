"""Groups of actors behind verbs that take records and give records: who computes, for whoever drives.

deployment.py  a config's devices, and groups on them    online.py  all roles of an online run
sampling.py    rollout engines                           policy.py  its training ranks, and their weights' way to engines
scorers.py     reward models, rules, services            stage.py   the workers of offline stages
"""
