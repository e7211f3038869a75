"""Whole runs without processes: the real controller, store, tracker, report, workers, groups and pools over simulated actors.

run() --> OnlineWorkers --> WorkerGroup, RayTransport --> SimulatedRay --> SimulatedEngine, SimulatedPolicy, ...
  |                                                   |
  +--> store --> Disk: the driver dies at a write     +--> fate: a worker dies, hangs or raises at a call
"""
