"""A sealer in a process of its own, to be killed at any moment: python drain_forever.py URL TABLE."""

import sys

from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.sealer import Sealer

if __name__ == "__main__":
    sealer = Sealer(EventLog(open_database(sys.argv[1])), sys.argv[2], batch=7)
    print("ready", flush=True)
    while True:
        sealer.drain()
