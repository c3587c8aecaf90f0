from ... import helper


def parse(text):
    return [helper.double(int(word)) for word in text.split(",")]
