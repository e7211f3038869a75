"""The data factory's stages: each reads rows, carries a step over them, and keeps what it made.

run.py -> steps.py (which step is carried out how) -> asking.py (record by record, with a model)
                                                   -> streams.py (row by row, without one)
                                                   -> cleaning.py (all rows against each other, by blocks)
       -> RUN/records/: rows.jsonl, or the files that the step names, and what fell out; RUN/records.json
"""
