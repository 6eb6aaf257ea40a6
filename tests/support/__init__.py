"""Real servers and small tools that several test areas share."""
