package launcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
)

// Orders are written and read by the same program, and hold texts of any bytes: paths,
// arguments, variables. Their form is the values one after the other, in the order of the
// types: numbers as varints, and lengths before texts and lists. (encoding/gob does the same
// for 0.2 MB of program, and package initialisation that every start of a plugin pays for.)

// appendOrder appends v to b.
func appendOrder(b []byte, v reflect.Value) ([]byte, error) {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1), nil
		}
		return append(b, 0), nil
	case reflect.Int:
		return binary.AppendVarint(b, v.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(b, v.Uint()), nil
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...), nil // #nosec G115 -- a length
	case reflect.Slice:
		return appendAll(binary.AppendUvarint(b, uint64(v.Len())), v.Len(), v.Index) // #nosec G115 -- a length
	case reflect.Array:
		return appendAll(b, v.Len(), v.Index)
	case reflect.Struct:
		return appendAll(b, v.NumField(), v.Field)
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0), nil
		}
		return appendOrder(append(b, 1), v.Elem())
	default:
		return nil, fmt.Errorf("an order cannot hold a %s", v.Type())
	}
}

func appendAll(b []byte, n int, part func(int) reflect.Value) (_ []byte, err error) {
	for i := range n {
		if b, err = appendOrder(b, part(i)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

var errOrder = errors.New("the order is not whole")

// readOrder sets v, which is zero, from the start of b, and returns the rest. Lists without
// an entry become nil.
func readOrder(b []byte, v reflect.Value) (rest []byte, err error) {
	switch v.Kind() {
	case reflect.Array:
		return readAll(b, v.Len(), v.Index)
	case reflect.Struct:
		return readAll(b, v.NumField(), v.Field)
	case reflect.Int:
		n, size := binary.Varint(b)
		if size <= 0 || v.OverflowInt(n) {
			return nil, errOrder
		}
		v.SetInt(n)
		return b[size:], nil
	default:
	}
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return nil, errOrder
	}
	b = b[size:]
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(n == 1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.OverflowUint(n) {
			return nil, errOrder
		}
		v.SetUint(n)
	case reflect.Pointer:
		if n == 1 {
			v.Set(reflect.New(v.Type().Elem()))
			return readOrder(b, v.Elem())
		}
	case reflect.String:
		if n > uint64(len(b)) {
			return nil, errOrder
		}
		v.SetString(string(b[:n]))
		return b[n:], nil
	case reflect.Slice:
		if n > uint64(len(b)) { // each entry has a byte at least
			return nil, errOrder
		}
		if n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), int(n), int(n))) // #nosec G115 -- bounded above
		}
		return readAll(b, int(n), v.Index) // #nosec G115 -- bounded above
	default:
		return nil, fmt.Errorf("an order cannot hold a %s", v.Type())
	}
	return b, nil
}

func readAll(b []byte, n int, part func(int) reflect.Value) (_ []byte, err error) {
	for i := range n {
		if b, err = readOrder(b, part(i)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// DecodeOrder sets the value that out points to, which is zero, from all of data.
func DecodeOrder(data []byte, out any) error {
	rest, err := readOrder(data, reflect.ValueOf(out).Elem())
	if err == nil && len(rest) > 0 {
		err = errOrder
	}
	return err
}
