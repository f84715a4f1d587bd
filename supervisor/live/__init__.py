"""What a run does just now, for people who look at it while it trains."""
