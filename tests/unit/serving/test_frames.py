"""The frames between front and workers."""

from hypothesis import given
from hypothesis import strategies as st

from sm_runtime.serving import frames

FRAMES = st.lists(st.tuples(st.dictionaries(st.text(), st.text()), st.binary(max_size=50)))


@given(FRAMES, st.integers(1, 40))
def test_frames_arrive_as_they_were_sent_however_the_stream_is_cut(sent, step):
    stream = b"".join(frames.prefix(header, body) + body for header, body in sent)
    found = []
    reader = frames.Reader(lambda header, body: found.append((header, body)))
    for start in range(0, len(stream), step):
        reader.feed(stream[start : start + step])
    assert found == sent
