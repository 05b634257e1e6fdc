"""The `tepui` command, and the only place where the parts of a master or an agent are wired together."""

import wire as wire  # before anything imports grpc: it sets what grpc reads only once
