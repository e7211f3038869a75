"""Groups of actors behind verbs that take records and give records: who computes, for whoever drives.

sampling.py  rollout engines          scorers.py  reward models, rules, services
online.py    all roles of a run       stage.py    the ranks of an offline stage
"""
