package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Codes of the first packet (PostgreSQL 18, protocol-message-formats).
const (
	codeCancel    = 80877102
	codeTLS       = 80877103
	codeGSS       = 80877104
	protocolMajor = 3
	// newestMinor is the newest minor version that is spoken: its cancel keys may have up to
	// 256 bytes. 3.1 was never used.
	newestMinor = 2
)

const (
	// maxStartup is the size of the first packet at most, as PostgreSQL limits it.
	maxStartup = 10000
	minStartup = 8
	// maxKey is the size of a cancel key at most.
	maxKey = 256
)

// packet is a first packet.
type packet struct {
	code uint32
	body []byte
}

// errPacket is for a first packet of another protocol.
var errPacket = errors.New("the connection does not begin with a startup packet of PostgreSQL")

// readPacket reads a first packet.
func readPacket(r io.Reader) (packet, error) {
	var head [minStartup]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return packet{}, err
	}
	length := binary.BigEndian.Uint32(head[:4])
	if length < minStartup || length > maxStartup {
		return packet{}, errPacket
	}
	p := packet{code: binary.BigEndian.Uint32(head[4:]), body: make([]byte, length-minStartup)}
	_, err := io.ReadFull(r, p.body)
	return p, err
}

// startup is what a plugin asks for.
type startup struct {
	minor    uint16 // of the protocol that is spoken
	asked    uint16
	unknown  []string // options of the protocol that are not known
	user     string
	database string
	settings map[string]string // that pass to the server
}

// startupError is a startup that is refused, with the error of the database for it.
type startupError struct {
	state, detail string
}

func (e *startupError) Error() string { return e.detail }

// readStartup reads the parameters of a session (PostgreSQL 18, protocol-flow, start-up).
func readStartup(p packet) (*startup, error) {
	if p.code>>16 != protocolMajor {
		return nil, &startupError{stateFeatureNotSupported, fmt.Sprintf("protocol %d.%d is not spoken; use 3.0 or 3.2", p.code>>16, p.code&0xffff)}
	}
	s := &startup{asked: uint16(p.code & 0xffff), settings: map[string]string{}}
	if s.asked >= newestMinor {
		s.minor = newestMinor
	}
	rest := p.body
	for len(rest) > 0 && rest[0] != 0 {
		name, after, ok := bytes.Cut(rest, []byte{0})
		value, next, whole := bytes.Cut(after, []byte{0})
		if !ok || !whole {
			return nil, &startupError{stateProtocolViolation, "the startup packet ends within a parameter"}
		}
		if err := s.parameter(string(name), string(value)); err != nil {
			return nil, err
		}
		rest = next
	}
	if len(rest) != 1 {
		return nil, &startupError{stateProtocolViolation, "the startup packet does not end in a NUL"}
	}
	if s.user == "" {
		return nil, &startupError{stateInvalidAuth, "the startup packet names no user"}
	}
	if s.database == "" {
		s.database = s.user
	}
	if len(s.database) > nameSize { // PostgreSQL 16 and earlier would cut it, and open another than was decided
		return nil, &startupError{stateInvalidCatalog, fmt.Sprintf("the name of the database has %d bytes; no database has more than %d", len(s.database), nameSize)}
	}
	return s, nil
}

// negotiates reports whether the plugin must be sent the version that is spoken.
func (s *startup) negotiates() bool { return s.asked > newestMinor || len(s.unknown) > 0 }

func (s *startup) parameter(name, value string) error {
	switch strings.ToLower(name) {
	case "user":
		s.user = value
		return nil
	case "database":
		s.database = value
		return nil
	case "replication":
		if isFalse(value) {
			return nil
		}
		return &startupError{statePrivilege, "replication is never granted; connect without the parameter replication"}
	case "options":
		return s.options(value)
	}
	if strings.HasPrefix(name, "_pq_.") {
		s.unknown = append(s.unknown, name)
		return nil
	}
	return s.setting(name, value)
}

// setting takes a setting that does not change how statements are read, and refuses any other.
func (s *startup) setting(name, value string) error {
	lower := strings.ToLower(name)
	if slices.Contains(sql.PassingSettings(), lower) && lower != settingConstraints {
		s.settings[lower] = value
		return nil
	}
	switch lower {
	case settingEncoding:
		// A client in the locale C asks for SQL_ASCII, and reads UTF-8 as well.
		if slices.Contains([]string{"utf8", "unicode", "sqlascii"}, cleanEncoding(value)) {
			return nil
		}
		return &startupError{stateInvalidParameter, "client_encoding " + printable.Clip(value, nameSize) + " is not granted; use UTF8"}
	case settingStrings, settingReadOnly:
		if isTrue(value) {
			if lower == settingReadOnly {
				s.settings[lower] = "on"
			}
			return nil
		}
	}
	return &startupError{statePrivilege, "the parameter " + printable.Clip(name, nameSize) + " is not granted at the start of a session"}
}

// cleanEncoding returns the letters and digits of an encoding's name, which are all that
// the server compares (clean_encoding_name): asyncpg and postgres.js ask for 'utf-8', with
// the quotes.
func cleanEncoding(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r + ('a' - 'A')
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return -1
	}, name)
}

func isTrue(value string) bool {
	return slices.Contains([]string{"on", "true", "yes", "1"}, strings.ToLower(value))
}

func isFalse(value string) bool {
	return slices.Contains([]string{"off", "false", "no", "0"}, strings.ToLower(value))
}

// options reads the command line of a backend: -c NAME=VALUE and --NAME=VALUE, separated
// by spaces that a backslash does not precede.
func (s *startup) options(line string) error {
	words := splitOptions(line)
	for i := 0; i < len(words); i++ {
		word, isLong := strings.CutPrefix(words[i], "--")
		if !isLong {
			var ok bool
			if word, ok = strings.CutPrefix(words[i], "-c"); !ok {
				return &startupError{statePrivilege, "options other than -c NAME=VALUE are not granted"}
			}
			if word == "" && i+1 < len(words) {
				i++
				word = words[i]
			}
		}
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return &startupError{statePrivilege, "an option has no value"}
		}
		if err := s.setting(strings.ReplaceAll(name, "-", "_"), value); err != nil {
			return err
		}
	}
	return nil
}

// splitOptions splits a command line as the server does (pg_split_opts).
func splitOptions(line string) (words []string) {
	var word strings.Builder
	begun := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case strings.IndexByte(" \t\n\v\f\r", c) >= 0:
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		case c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			begun = true
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}

// Settings that decide how statements are read, and what they may do.
const (
	settingEncoding   = "client_encoding"
	settingStrings    = "standard_conforming_strings"
	settingSearchPath = "search_path"
	settingReadOnly   = "default_transaction_read_only"
	// settingConstraints is the fact of SET CONSTRAINTS, which is not a setting.
	settingConstraints = "constraints"
)

// pins returns the settings of a session at its server: those of the plugin, and over them
// those on which the decisions rest. The server takes what a startup packet sets as the
// value to which RESET, RESET ALL and DISCARD ALL return, so that they stay set.
func (s *startup) pins(readOnly bool) map[string]string {
	all := maps.Clone(s.settings)
	all[settingEncoding] = "UTF8"
	all[settingStrings] = "on"
	all[settingSearchPath] = "pg_catalog, public"
	if readOnly {
		all[settingReadOnly] = "on"
	}
	return all
}
