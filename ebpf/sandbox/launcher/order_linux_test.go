package launcher

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestOrder writes and reads orders of any content, and refuses each that is cut.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want, got Spec
		fillOrder(t, reflect.ValueOf(&want).Elem())
		data, err := appendOrder(nil, reflect.ValueOf(want))
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodeOrder(data, &got); err != nil || !reflect.DeepEqual(want, got) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		if err := DecodeOrder(append(data, 0), &Spec{}); err == nil {
			t.Error("an order with more behind it is taken")
		}
		if err := DecodeOrder(data[:rapid.IntRange(0, len(data)-1).Draw(t, "cut")], &Spec{}); err == nil {
			t.Error("an order that is cut is taken")
		}
	})
}

// fillOrder gives v any value.
func fillOrder(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fillOrder(t, field)
		}
	case reflect.Array:
		for i := range v.Len() {
			fillOrder(t, v.Index(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			fillOrder(t, v.Elem())
		}
	case reflect.Slice:
		if n := rapid.IntRange(0, 3).Draw(t, "length"); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fillOrder(t, v.Index(i))
			}
		}
	case reflect.String:
		v.SetString(string(rapid.SliceOf(rapid.Byte()).Draw(t, "text")))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int:
		v.SetInt(rapid.Int64().Draw(t, "int"))
	default:
		v.SetUint(rapid.Uint64().Draw(t, "uint") >> (64 - v.Type().Bits()))
	}
}

func FuzzDecodeOrder(f *testing.F) {
	data, err := appendOrder(nil, reflect.ValueOf(Spec{Program: ProgramSpec{Args: []string{"\xff"}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = DecodeOrder(data, &Spec{})
		_ = DecodeOrder(data, &RootlessSpec{})
	})
}

// TestWriteSpec hands over a value and a pointer to one alike.
func TestWriteSpec(t *testing.T) {
	want := Spec{Program: ProgramSpec{Path: "/bin/x", Args: []string{"\xff"}}, View: &View{}}
	for _, value := range []any{want, &want} {
		file, err := WriteSpec(value)
		if err != nil {
			t.Fatal(err)
		}
		var got Spec
		if err := ReadSpec(file, &got); err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("got %+v, %v", got, err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
}
