"""Asks containers, from inside their network namespaces, whether they are well."""
