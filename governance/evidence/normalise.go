package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// format is a report format.
type format int

const (
	unknownFormat format = iota
	sarif
	cycloneDX
	spdx
	openVEX
	junit
	goTest
	inToto
	envelope // a DSSE envelope around an in-toto statement
)

// Normalise reads a report of any of the formats in the documentation of the package. The
// format follows from the content, never from a file name. A CycloneDX document with
// vulnerabilities gives two predicates.
func Normalise(data []byte, o Options) ([]Normalised, error) {
	if len(data) > MaxSource {
		return nil, fmt.Errorf("read report: it has %d bytes; at most %d are allowed", len(data), MaxSource)
	}
	if o.IssuedAt.IsZero() {
		return nil, errors.New("read report: the time of issue is missing")
	}
	if o.Level < 0 || o.Level > 3 {
		return nil, fmt.Errorf("read report: level %d is not a level of SLSA's Build track; 1 to 3 are", o.Level)
	}
	source := Source{Digest: dsse.Digest(data), Size: len(data), Tools: []Tool{}}
	out, err := normalise(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), source, o)
	if err != nil {
		return nil, err
	}
	for _, n := range out {
		if len(n.Predicate) > MaxSource/8 {
			return nil, fmt.Errorf("read report: its predicate has %d bytes; at most %d are allowed: scan parts of the artifact one by one", len(n.Predicate), MaxSource/8)
		}
	}
	return out, nil
}

func normalise(data []byte, source Source, o Options) ([]Normalised, error) {
	kind, err := detect(data)
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	read := map[format]func([]byte, Source, Options) ([]Normalised, error){
		sarif: readSARIF, cycloneDX: readCycloneDX, spdx: readSPDX, openVEX: readOpenVEX, junit: readJUnit,
		goTest: readGoTest, inToto: readInToto, envelope: readEnvelope,
	}[kind]
	if read == nil {
		return nil, errors.New("read report: the format is not known; SARIF 2.1.0, CycloneDX 1.4 to 1.7 (JSON), SPDX 2.2 and 2.3 (JSON), OpenVEX, JUnit, go test -json and in-toto statements are")
	}
	out, err := read(data, source, o)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	for _, n := range out {
		var r reader
		item := Item{PredicateType: n.PredicateType, Predicate: n.Predicate}
		if item.times(&r); r.err == nil && item.stated.After(o.IssuedAt.Add(maxAhead)) {
			return nil, fmt.Errorf("read %s: the report states %s, which is in the future: the time is %s", kind,
				item.stated.Format(time.RFC3339), o.IssuedAt.UTC().Format(time.RFC3339))
		}
	}
	return out, nil
}

func (f format) String() string {
	return [...]string{"report", "SARIF", "CycloneDX", "SPDX", "OpenVEX", "JUnit", "go test -json", "in-toto statement", "DSSE envelope"}[f]
}

// detect returns the format of a report.
func detect(data []byte) (format, error) {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	if len(trimmed) == 0 {
		return unknownFormat, errors.New("it is empty")
	}
	if trimmed[0] == '<' {
		return junit, nil
	}
	if line, _, _ := bytes.Cut(trimmed, []byte("\n")); isGoTest(line) {
		return goTest, nil
	}
	var head struct {
		Type        string          `json:"_type"`
		PayloadType string          `json:"payloadType"`
		BOMFormat   string          `json:"bomFormat"`
		SPDXVersion string          `json:"spdxVersion"`
		Context     json.RawMessage `json:"@context"`
		Runs        json.RawMessage `json:"runs"`
	}
	if err := decode(data, &head); err != nil {
		return unknownFormat, err
	}
	var found []format
	for kind, is := range map[format]bool{
		inToto: head.Type != "", envelope: head.PayloadType != "", cycloneDX: head.BOMFormat != "", spdx: head.SPDXVersion != "",
		openVEX: bytes.Contains(head.Context, []byte("openvex")), sarif: head.Runs != nil,
	} {
		if is {
			found = append(found, kind)
		}
	}
	switch len(found) {
	case 0:
		return unknownFormat, nil
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return unknownFormat, fmt.Errorf("it has the marks of two formats, %s and %s", found[0], found[1])
}

// findingID returns the stable id of a finding: a digest of what stays when code around it
// moves.
func findingID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return "F-" + hex.EncodeToString(h.Sum(nil))[:20]
}

// sortTools returns tools in one order, each once.
func sortTools(tools []Tool) []Tool {
	slices.SortFunc(tools, func(a, b Tool) int { return strings.Compare(a.Name+"\x00"+a.Version, b.Name+"\x00"+b.Version) })
	return slices.Compact(tools)
}
