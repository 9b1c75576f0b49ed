package configs

import (
	"reflect"
	"strings"
	"testing"
)

// The fields of every type of a document are those that Go sees in it: no embedded struct hides
// a field of another.
func TestFieldsOfEveryType(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] {
			return
		}
		seen[typ] = true
		got := fieldsOf(typ)
		for _, f := range reflect.VisibleFields(typ) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				if len(got) == 0 || !reflect.DeepEqual(got[0], structField{name, f.Index, options == ""}) {
					t.Fatalf("%s: field %s %v is not the next of %v", typ, name, f.Index, got)
				}
				got = got[1:]
			}
			walk(f.Type)
		}
		if len(got) > 0 {
			t.Errorf("%s: fields %v are not among those that Go sees", typ, got)
		}
	}
	for _, kind := range Kinds() {
		s := source{kind: kind}
		walk(reflect.TypeOf(s.allocate()))
	}
	if len(seen) < 50 {
		t.Errorf("%d types were compared", len(seen))
	}
}
