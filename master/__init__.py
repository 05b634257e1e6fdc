"""The coordinator: membership, offers, dispatch, discovery, the REST door. It never touches a kernel."""
