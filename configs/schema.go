package configs

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:generate go test -run ^TestSchemas$ -update .

//go:embed schema/*.json
var schemas embed.FS

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
	return schemas.ReadFile("schema/" + kind + ".json")
}
