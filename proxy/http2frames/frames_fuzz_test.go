package http2frames

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// FuzzFrames passes anything on as frames of HTTP/2 and reads it as net/http does:
// each head carries the number of its stream, put there once and by nobody else.
func FuzzFrames(f *testing.F) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a"}, {":path", "/"}, {headerStream, "7"}, {"x", strings.Repeat("y", 40)}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	whole := block.Bytes()
	head := appendFrame(nil, http2.FrameHeaders, 5, 1, whole)
	split := appendFrame(appendFrame(nil, http2.FrameHeaders, 1, 1, whole[:9]), http2.FrameContinuation, 4, 1, whole[9:])
	padded := appendFrame(nil, http2.FrameHeaders, 0x2d, 3, append(append([]byte{2, 0, 0, 0, 0, 9}, whole...), 0, 0))
	broken := appendFrame(nil, http2.FrameHeaders, 0x2d, 3, []byte{200, 0, 0, 0, 0, 9, 1})
	update := appendFrame(nil, http2.FrameWindowUpdate, 0, 1, []byte{0, 0, 0, 0})
	for _, seed := range [][]byte{
		head, split, padded, append(bytes.Clone(split[:18]), broken...), append(append(bytes.Clone(split[:18]), update...), split[18:]...),
		append(append(append(bytes.Clone(split[:18]), update...), split[18:]...), padded...),
		append(append(append(bytes.Clone(split[:18]), broken...), split[18:]...), padded...),
		appendFrame(head, http2.FrameHeaders, 5, 1, whole), append([]byte{0, 64, 1, 1, 5, 0, 0, 0, 1}, make([]byte, 20000)...),
		appendFrame(nil, http2.FrameHeaders, 5, 1, append([]byte{0x3f, 0xff, 0xff, 0x01}, whole...)), appendFrame(nil, http2.FrameHeaders, 5, 1, append([]byte{0x20}, whole...)),
		append(appendFrame(nil, http2.FramePushPromise, 4, 1, append([]byte{0, 0, 0, 2}, whole...)), head...),
	} {
		f.Add(seed)
	}
	const maxHeaderBytes = 64 << 10
	f.Fuzz(func(t *testing.T, sent []byte) {
		memory := budget.New(1 << 20)
		held := memory.Hold()
		frames := New(Config{
			Source: strings.NewReader(http2.ClientPreface + string(sent)), Report: func(string) {}, Budget: memory,
			Reserve:        func(n int64) error { return held.Take(budget.Connection, n) },
			Target:         func() (scheme, authority string) { return "http", "unknown.invalid" },
			MaxHeaderBytes: maxHeaderBytes, MaxStreams: 250,
		})
		if _, err := io.ReadFull(&frames.In, make([]byte, len(http2.ClientPreface))); err != nil {
			t.Fatal(err)
		}
		reader := http2.NewFramer(io.Discard, &frames.In)
		reader.SetMaxReadFrameSize(MaxFrame)
		reader.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		reader.ReadMetaHeaders.SetMaxStringLength(maxHeaderBytes + 320)
		reader.MaxHeaderListSize = maxHeaderBytes + 320
		last := uint32(0)
		for {
			frame, err := reader.ReadFrame()
			if _, ok := errors.AsType[http2.StreamError](err); ok {
				continue
			}
			if err != nil {
				break
			}
			meta, ok := frame.(*http2.MetaHeadersFrame)
			if !ok {
				continue
			}
			numbers := []string(nil)
			for _, field := range meta.Fields {
				if strings.EqualFold(field.Name, headerStream) {
					numbers = append(numbers, field.Value)
				}
			}
			if meta.StreamID > last && meta.StreamID%2 == 1 {
				last = meta.StreamID
				number, _, _ := strings.Cut(strings.Join(numbers, "|"), " ")
				if number != strconv.FormatUint(uint64(last), 10) || meta.Truncated {
					t.Fatalf("the head of stream %d carries %q, truncated %v", last, numbers, meta.Truncated)
				}
			} else if meta.StreamID%2 == 1 && len(numbers) > 0 {
				t.Fatalf("trailers of stream %d carry %q", meta.StreamID, numbers)
			}
		}
		held.End()
		for _, kind := range budget.Kinds() {
			if n, _ := memory.Held(kind); n != 0 {
				t.Fatalf("%d bytes are held of nothing", n)
			}
		}
	})
}
