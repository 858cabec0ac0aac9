"""What every command shares: flags, exit status, preemption, out of memory."""
