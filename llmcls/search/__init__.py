"""Search for better recipe values: the space, the study that many processes share, a trial, and what was found."""
