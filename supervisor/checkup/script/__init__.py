"""`supervise doctor train.py`: what a run of this script will be like, told from its source. The script never runs."""
