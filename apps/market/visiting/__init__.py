"""What visitors of market do, by area: who they are and what they know, looking, shopping, posting."""
