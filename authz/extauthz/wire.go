package extauthz

import (
	"iter"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// check holds the fields of a CheckRequest that the server reads. It is scanned from
// the wire format, because decoding the whole message takes longer than everything
// else in a check. The rules of protobuf apply: of a repeated scalar field the last
// value counts, messages are merged, unknown fields and wire types are skipped, and
// strings are UTF-8. Fields that the server does not read are not validated.
type check struct {
	attributes bool // present
	http       bool // attributes.request.http is present

	principal string // of the source
	service   string // of the destination
	dialled   socket // the destination's address
	sni       string
	plugin    string // of the context extensions
	hasPlugin bool   // the context extensions name a plugin

	id, method, scheme, authority, path, query string
	size                                       int64
	raw                                        []header // of header_map
	folded                                     []header // of headers, where duplicates are joined
}

// socket is a socket address, the zero socket an address of another kind.
type socket struct {
	address string
	port    uint32
	udp     bool
}

// header is a header of a request, or one that an answer sets.
type header struct{ name, value string }

// typicalHeaders is the initial capacity for headers.
const typicalHeaders = 16

// read reads a CheckRequest and reports whether it is valid. The strings that it keeps
// are parts of one copy of data.
func (c *check) read(data mem.BufferSlice) bool {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	s := scanner{}
	s.request(c, message{buffer.ReadOnlyData(), string(buffer.ReadOnlyData())})
	return !s.broken
}

// Fields, as protobuf tags them on the wire: the number and the wire type.
// The numbers are from envoy/service/auth/v3/external_auth.proto and
// attribute_context.proto, and envoy/config/core/v3/address.proto and base.proto.
const (
	number = uint64(protowire.VarintType)
	text   = uint64(protowire.BytesType) // strings, bytes and messages

	requestAttributes = 1<<3 | text

	attributesSource      = 1<<3 | text
	attributesDestination = 2<<3 | text
	attributesRequest     = 4<<3 | text
	attributesContext     = 10<<3 | text
	attributesTLSSession  = 12<<3 | text

	peerAddress   = 1<<3 | text
	peerService   = 2<<3 | text
	peerPrincipal = 4<<3 | text

	addressSocket   = 1<<3 | text
	addressPipe     = 2<<3 | text
	addressInternal = 3<<3 | text

	socketProtocol  = 1<<3 | number
	socketAddress   = 2<<3 | text
	socketPort      = 3<<3 | number
	socketNamedPort = 4<<3 | text

	sessionSNI = 1<<3 | text

	requestHTTP = 2<<3 | text

	httpID        = 1<<3 | text
	httpMethod    = 2<<3 | text
	httpHeaders   = 3<<3 | text
	httpPath      = 4<<3 | text
	httpHost      = 5<<3 | text
	httpScheme    = 6<<3 | text
	httpQuery     = 7<<3 | text
	httpSize      = 9<<3 | number
	httpHeaderMap = 13<<3 | text

	headerMapHeaders = 1<<3 | text

	headerKey      = 1<<3 | text // of a HeaderValue, and of an entry of a map
	headerValue    = 2<<3 | text
	headerRawValue = 3<<3 | text
)

// message is a message on the wire, and the same bytes as a string, of which check
// keeps parts.
type message struct {
	bytes []byte
	text  string
}

func (m message) skip(n int) message { return message{m.bytes[n:], m.text[n:]} }

// field is one field of a message: a number, or the message, string or bytes inside.
type field struct {
	tag    uint64
	number uint64
	inside message
}

// scanner reads messages.
type scanner struct{ broken bool }

// fields yields the fields of a message, except those of wire types that no field of
// check has.
func (s *scanner) fields(m message) iter.Seq[field] {
	return func(yield func(field) bool) {
		for len(m.bytes) > 0 && !s.broken {
			id, kind, n := protowire.ConsumeTag(m.bytes)
			if n < 0 || id > protowire.MaxValidNumber { // ConsumeTag accepts larger ones
				s.broken = true
				return
			}
			m = m.skip(n)
			f := field{tag: protowire.EncodeTag(id, kind)}
			switch kind {
			case protowire.VarintType:
				f.number, n = protowire.ConsumeVarint(m.bytes)
			case protowire.BytesType:
				f.inside.bytes, n = protowire.ConsumeBytes(m.bytes)
			default:
				f.tag, n = 0, protowire.ConsumeFieldValue(id, kind, m.bytes)
			}
			if n < 0 {
				s.broken = true
				return
			}
			f.inside.text = m.text[n-len(f.inside.bytes) : n]
			m = m.skip(n)
			if f.tag != 0 && !yield(f) {
				return
			}
		}
	}
}

// text returns a string.
func (s *scanner) text(f field) string {
	s.broken = s.broken || !utf8.ValidString(f.inside.text)
	return f.inside.text
}

func (s *scanner) request(c *check, m message) {
	for f := range s.fields(m) {
		if f.tag == requestAttributes {
			c.attributes = true
			s.attributes(c, f.inside)
		}
	}
}

func (s *scanner) attributes(c *check, m message) {
	for f := range s.fields(m) {
		switch f.tag {
		case attributesSource:
			s.source(c, f.inside)
		case attributesDestination:
			s.destination(c, f.inside)
		case attributesRequest:
			for f := range s.fields(f.inside) {
				if f.tag == requestHTTP {
					c.http = true
					s.http(c, f.inside)
				}
			}
		case attributesContext:
			if entry, _ := s.pair(f.inside); entry.name == contextPlugin {
				c.plugin, c.hasPlugin = entry.value, true
			}
		case attributesTLSSession:
			for f := range s.fields(f.inside) {
				if f.tag == sessionSNI {
					c.sni = s.text(f)
				}
			}
		}
	}
}

func (s *scanner) source(c *check, m message) {
	for f := range s.fields(m) {
		if f.tag == peerPrincipal {
			c.principal = s.text(f)
		}
	}
}

func (s *scanner) destination(c *check, m message) {
	for f := range s.fields(m) {
		switch f.tag {
		case peerAddress:
			s.address(&c.dialled, f.inside)
		case peerService:
			c.service = s.text(f)
		}
	}
}

// address reads an address, whose kind is that of its last field.
func (s *scanner) address(to *socket, m message) {
	for f := range s.fields(m) {
		switch f.tag {
		case addressSocket:
			s.socket(to, f.inside)
		case addressPipe, addressInternal:
			*to = socket{}
		}
	}
}

func (s *scanner) socket(to *socket, m message) {
	for f := range s.fields(m) {
		switch f.tag {
		case socketProtocol:
			to.udp = int32(f.number) != 0 // TCP is 0
		case socketAddress:
			to.address = s.text(f)
		case socketPort:
			to.port = uint32(f.number)
		case socketNamedPort: // instead of a number
			to.port = 0
			s.text(f)
		}
	}
}

func (s *scanner) http(c *check, m message) {
	for f := range s.fields(m) {
		switch f.tag {
		case httpID:
			c.id = s.text(f)
		case httpMethod:
			c.method = s.text(f)
		case httpHeaders:
			h, _ := s.pair(f.inside)
			c.folded = add(c.folded, h)
		case httpPath:
			c.path = s.text(f)
		case httpHost:
			c.authority = s.text(f)
		case httpScheme:
			c.scheme = s.text(f)
		case httpQuery:
			c.query = s.text(f)
		case httpSize:
			c.size = int64(f.number)
		case httpHeaderMap:
			s.headerMap(c, f.inside)
		}
	}
}

func (s *scanner) headerMap(c *check, m message) {
	for f := range s.fields(m) {
		if f.tag != headerMapHeaders {
			continue
		}
		h, raw := s.pair(f.inside)
		if raw != "" {
			h.value = raw
		}
		c.raw = add(c.raw, h)
	}
}

func add(list []header, h header) []header {
	if list == nil {
		list = make([]header, 0, typicalHeaders)
	}
	return append(list, h)
}

// pair reads an entry of a map, or a HeaderValue, which may have a raw value.
func (s *scanner) pair(m message) (h header, raw string) {
	for f := range s.fields(m) {
		switch f.tag {
		case headerKey:
			h.name = s.text(f)
		case headerValue:
			h.value = s.text(f)
		case headerRawValue:
			raw = f.inside.text
		}
	}
	return h, raw
}
