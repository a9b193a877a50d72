"""From evidence to decisions, and what decisions are worth: plain numbers in, plain numbers out."""
