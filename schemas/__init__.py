"""What travels: contracts, topic catalogue, envelope, settings, the error tree. Imports nothing of ours."""
