package http2frames

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/net/http2"
	"pgregory.net/rapid"
)

// TestFramesAreWrittenAsTheyAre writes frames in pieces of any size: what comes
// out is the same, but for the codes of resets and the resets behind answers to
// what is malformed.
func TestFramesAreWrittenAsTheyAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reports := 0
		f := New(Config{Report: func(string) { reports++ }, MaxStreams: 250})
		f.add(1, &streamState{reset: http2.ErrCodeCancel})
		f.add(3, &streamState{malformed: true})
		var in, want []byte
		ended := map[uint32]bool{}
		for range rapid.IntRange(1, 8).Draw(t, "frames") {
			kind := rapid.SampledFrom([]http2.FrameType{http2.FrameData, http2.FrameHeaders, http2.FrameRSTStream, http2.FrameWindowUpdate, http2.FrameSettings}).Draw(t, "type")
			flags := http2.Flags(rapid.SampledFrom([]uint8{0, 1}).Draw(t, "flags"))
			stream := rapid.SampledFrom([]uint32{1, 3, 5}).Draw(t, "stream")
			payload := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
			if kind == http2.FrameRSTStream {
				payload = binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeInternal))
			}
			in = appendFrame(in, kind, flags, stream, payload)
			ends := (kind == http2.FrameData || kind == http2.FrameHeaders) && flags == 1
			if kind == http2.FrameRSTStream && stream == 1 && !ended[stream] {
				payload = binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeCancel))
			}
			want = appendFrame(want, kind, flags, stream, payload)
			if ends && stream == 3 && !ended[stream] {
				want = appendFrame(want, http2.FrameRSTStream, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeProtocol)))
			}
			ended[stream] = ended[stream] || ends || kind == http2.FrameRSTStream
		}
		var out bytes.Buffer
		for rest := in; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			if got, err := f.Out.Write(rest[:n], out.Write); err != nil || got != n {
				t.Fatalf("wrote %d of %d, %v", got, n, err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("wrote\n%x, want\n%x", out.Bytes(), want)
		}
	})
}
