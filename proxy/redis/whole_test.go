package redis

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	moved       = "-MOVED 1 127.0.0.1:1\r\n"
	movedAnswer = "-ERR chaperone: the server is a node of a cluster and refers to another one; clusters are not supported yet\r\n"
)

// pieces is a server that answers in pieces of any size. Before each read it reports how much
// was read.
type pieces struct {
	net.Conn
	b       []byte
	rng     *rand.Rand
	largest int
	read    int
	before  func(read int)
}

// Read implements [io.Reader].
func (p *pieces) Read(b []byte) (int, error) {
	p.before(p.read)
	if p.read == len(p.b) {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.rng.IntN(p.largest))], p.b[p.read:])
	p.read += n
	return n, nil
}

// anyAnswer returns an answer with strings up to a size.
func anyAnswer(rng *rand.Rand, size, depth int) string {
	switch rng.IntN(10 - depth) {
	case 0:
		return "+OK\r\n"
	case 1:
		return fmt.Sprintf(":%d\r\n", rng.IntN(1000))
	case 2:
		return "-ERR " + strings.Repeat("x", rng.IntN(2000)) + "\r\n"
	case 3, 4:
		text := strings.Repeat("x", rng.IntN(size))
		return fmt.Sprintf("$%d\r\n%s\r\n", len(text), text)
	case 5:
		return "*-1\r\n"
	case 6:
		return moved
	default:
		n := rng.IntN(5)
		var out strings.Builder
		fmt.Fprintf(&out, "%c%d\r\n", "*>~"[rng.IntN(3)], n)
		for range n {
			out.WriteString(anyAnswer(rng, size/2+1, depth+1))
		}
		return out.String()
	}
}

// Every write to the plugin ends with a whole answer, unless the answer is larger than the buffer or
// has had another error put in it, and an answer that is whole does not wait for another read.
func TestWritesEndWithAnswers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		size := rapid.SampledFrom([]int{10, smallBuffer, largeBuffer / 4, 2 * largeBuffer}).Draw(t, "largest string")
		piece := rapid.SampledFrom([]int{1, 100, smallBuffer, largeBuffer}).Draw(t, "largest read")
		size = min(size, 100*piece) // no millions of reads
		var in, out []byte
		begins, ends, mayPart := []int{0}, []int{0}, []bool{false} // of answers of the server, of those to the plugin
		for range rapid.IntRange(1, 40).Draw(t, "answers") {
			one := anyAnswer(rng, size, 0)
			in, out = append(in, one...), append(out, strings.ReplaceAll(one, moved, movedAnswer)...)
			begins, ends = append(begins, len(in)), append(ends, len(out))
			mayPart = append(mayPart, len(one) > largeBuffer || strings.Contains(one[1:], moved))
		}
		written := 0
		server := &pieces{b: in, rng: rng, largest: piece}
		server.before = func(read int) {
			i, found := slices.BinarySearch(begins, read)
			if !found {
				i--
			}
			if written < ends[i] {
				t.Fatalf("%d bytes were read and %d written, want the whole answers, %d bytes", read, written, ends[i])
			}
		}
		r := &relay{server: server}
		r.answers.in = make([]byte, smallBuffer)
		r.answers.write = func(b []byte, whole bool, endOf func(b []byte, n int) int) (int, error) {
			if !bytes.HasPrefix(out[written:], b) {
				t.Fatalf("%d bytes at %d are others", len(b), written)
			}
			first, began := slices.BinarySearch(ends, written)
			last, ended := slices.BinarySearch(ends, written+len(b))
			if whole != ended || !ended && !mayPart[last] {
				t.Fatalf("a write of %d bytes ends within an answer, as whole: %t", len(b), whole)
			}
			for n := rng.IntN(50); began && n < len(b); n += 1 + rng.IntN(len(b)) {
				i, _ := slices.BinarySearch(ends[first:], written+n)
				if want, got := ends[first+i]-written, endOf(b, n); got != want && (want <= len(b) || got <= len(b)) {
					t.Fatalf("the answer of the byte before %d ends at %d, want %d", n, got, want)
				}
			}
			written += len(b)
			return len(b), nil
		}
		r.readAnswers()
		if written != len(out) || len(r.answers.in) > largeBuffer {
			t.Fatalf("%d bytes of %d were written, the buffer has %d", written, len(out), len(r.answers.in))
		}
	})
}
