"""Programs that use MarathonClient. They have an environment of their own, without any of Tepui."""
