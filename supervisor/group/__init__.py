"""A worker group: started cold or forked, parked as a standby, released."""
