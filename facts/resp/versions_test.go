package resp

import (
	"fmt"
	"maps"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestKeysOfOtherVersions: the commands of the table have their keys in the same places in an
// older and in a newer version of Redis, by the first key, the last one and the step between
// them, and in the newer one by its key specifications.
func TestKeysOfOtherVersions(t *testing.T) {
	testenv.Require(t, testenv.OtherRedis())
	want := placesOf(startServer(t).do(t, "COMMAND").([]any))
	for _, version := range []string{testenv.OldRedis, testenv.NewestRedis} {
		compared := 0
		for name, got := range placesOf(startVersion(t, version).do(t, "COMMAND").([]any)) {
			places, ok := want[name]
			row, _ := lookup(name)
			if !ok || row.forbidden || row.container { // its subcommands have keys
				continue
			}
			compared++
			if got.span != places.span || version == testenv.NewestRedis && got.specs != places.specs {
				t.Errorf("Redis %s has the keys of %s at %v, and 7.0 at %v", version, name, got, places)
			}
		}
		if compared < 180 {
			t.Errorf("%d commands of Redis %s are compared", compared, version)
		}
	}
}

// places states where a command has its keys.
type places struct{ span, specs string }

func placesOf(commands []any) map[string]places {
	out := make(map[string]places)
	for _, c := range commands {
		fields := c.([]any)
		p := places{span: fmt.Sprint(fields[3:6])}
		if len(fields) > 9 { // since 7.0
			for _, spec := range fields[8].([]any) {
				of := pairs(spec)
				p.specs += fmt.Sprint(of["begin_search"], of["find_keys"])
			}
			maps.Copy(out, placesOf(fields[9].([]any)))
		}
		out[fields[0].(string)] = p
	}
	return out
}
