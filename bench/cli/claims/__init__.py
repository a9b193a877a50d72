"""What serves one owner: a key is made, innocents are, a suspect is read, a user is named."""
