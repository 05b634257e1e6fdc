"""Container networking: links, bridges, routes, leases, the overlay and virtual addresses. Needs no cluster."""
