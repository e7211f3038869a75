"""Whole runs without processes: the real controller, store, tracker, report, crew, groups and pools over simulated actors.

run() --> Crew --> WorkerGroup, RayTransport --> SimulatedRay --> SimulatedEngine, SimulatedPolicy, ...
  |                                                   |
  +--> store --> Disk: the driver dies at a write     +--> fate: a worker dies, hangs or raises at a call
"""
