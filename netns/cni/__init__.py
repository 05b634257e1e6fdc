"""Networks that are configured by a CNI configuration list and made by plug-ins: the site's own SDN."""
