"""Entry of the user endpoint's process, by absolute path: kept to one import, since it is compiled each time."""

from user_endpoint.main import main

main()
