"""Who computes what next: nothing lost, nothing done twice, whatever befalls workers. Knows no Ray and no clock.

offer --> Pool (a role: dispatch.py says which worker, pool.py what it is sent) --> Transport --> worker
            ^                                                                          |
            +------ reports and losses, as events <-- Scheduler (all roles, scheduler.py) ----> Outcome, once for each key
"""
