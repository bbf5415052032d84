"""What the scheduler tells onlookers: loads, states and the events of the prefix cache."""
