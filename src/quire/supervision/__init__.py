"""What the supervisor is made of: children, their keepers, the watchdog and the control socket."""
