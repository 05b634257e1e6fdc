"""The cluster's certificate authority and what it vouches for: join tokens, enrolment, credentials, peer identity."""
