package configs

import (
	"bytes"
	"compress/gzip"
	_ "embed" // for the schemas
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:generate go test -run ^TestSchemas$ -update .

// schemas is a JSON object of the schemas in schema/, by kind, compressed: every sidecar
// carries it.
//
//go:embed schema/all.json.gz
var schemas []byte

// Schema returns the JSON Schema (2020-12) of a kind of document, generated
// from the Go types. It has the conditions on one document alone;
// [Check] has the others.
func Schema(kind string) ([]byte, error) {
	if !slices.Contains(Kinds(), Kind(kind)) {
		names := make([]string, 0, len(Kinds()))
		for _, k := range Kinds() {
			names = append(names, string(k))
		}
		return nil, fmt.Errorf("%q is not a kind; the kinds are %s", clip(kind), strings.Join(names, ", "))
	}
	compressed, err := gzip.NewReader(bytes.NewReader(schemas))
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	var all map[string]string
	if err := json.NewDecoder(compressed).Decode(&all); err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	return []byte(all[kind]), nil
}
