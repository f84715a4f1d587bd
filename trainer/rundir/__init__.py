"""The leaf that supervisor and trainer share: path names, durable writes, beats, notes, faults."""
