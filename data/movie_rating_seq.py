PUBLISHED: dict = {}


def described(folder, clicks):
    return None
