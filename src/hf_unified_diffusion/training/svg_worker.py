"""Renders SVG from standard input to PNG on standard output, within so many bytes of memory.

`image_render.SvgRenderer` runs this file as a program: it imports nothing of the package, so that it starts quickly and
its memory is the picture's. A request is (bytes of SVG, width, height), one of the two sizes 0, and the SVG; an answer
is (1 or 0, bytes), and a PNG file or a message.
"""

import resource
import struct
import sys

import resvg_py

REQUEST, ANSWER = struct.Struct("<III"), struct.Struct("<?I")


def main(max_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while header := requests.read(REQUEST.size):
        length, width, height = REQUEST.unpack(header)
        svg = requests.read(length).decode("utf-8", "replace")
        try:
            drawn = resvg_py.svg_to_bytes(
                svg_string=svg, width=width or None, height=height or None, skip_system_fonts=True
            )
            answer = True, bytes(drawn)
        except (ValueError, MemoryError) as error:
            answer = False, str(error).encode()
        answers.write(ANSWER.pack(answer[0], len(answer[1])) + answer[1])
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
