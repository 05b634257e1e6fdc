"""What we claim in numbers, measured beside what others need for the same. Each module has `run() -> Report`."""

import wire as wire  # before anything imports grpc: it sets what grpc reads only once
