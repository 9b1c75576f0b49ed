package authz

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written as one number and one unit:
// 250ms, 10s, 5m, 24h, 30d. A day is 24 hours.
type Duration time.Duration

type durationUnit struct {
	suffix string
	unit   time.Duration
}

// durationUnits returns the units, the longest first.
func durationUnits() []durationUnit {
	return []durationUnit{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}
}

// UnmarshalText reads a duration. Its error names the valid forms.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	for _, u := range durationUnits() {
		digits, ok := strings.CutSuffix(s, u.suffix)
		n, err := parseCount(digits)
		if err != nil || !ok || n > uint64(math.MaxInt64/u.unit) {
			continue
		}
		*d = Duration(time.Duration(n) * u.unit)
		return nil
	}
	return fmt.Errorf("%q is not a duration; write a whole number above 0 and a unit, as in 250ms, 10s, 5m, 24h or 30d", clip(s))
}

// String returns the duration in its shortest form, as UnmarshalText reads it.
func (d Duration) String() string {
	if d == 0 {
		return "0"
	}
	for _, u := range durationUnits() {
		if time.Duration(d)%u.unit == 0 {
			return strconv.FormatInt(int64(time.Duration(d)/u.unit), 10) + u.suffix
		}
	}
	return strconv.FormatInt(time.Duration(d).Milliseconds(), 10) + "ms"
}

// MarshalText returns String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Size is a number of bytes, written 10KiB, 5MiB, 1GiB, 10KB, 5MB, 1GB, or as
// a plain number.
type Size uint64

type sizeUnit struct {
	suffix string
	unit   uint64
}

// sizeUnits returns the units. Units that String uses come first, the longest
// before the others.
func sizeUnits() []sizeUnit {
	return []sizeUnit{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}}
}

// UnmarshalText reads a size. Its error names the valid forms.
func (z *Size) UnmarshalText(text []byte) error {
	s := string(text)
	for _, u := range sizeUnits() {
		digits, ok := strings.CutSuffix(s, u.suffix)
		n, err := parseCount(digits)
		if err != nil || !ok || n > math.MaxInt64/u.unit {
			continue
		}
		*z = Size(n * u.unit)
		return nil
	}
	return fmt.Errorf("%q is not a size; write a whole number above 0 and a unit, as in 10KiB, 5MiB or 1GiB", clip(s))
}

// String returns the size in its shortest exact form.
func (z Size) String() string {
	for _, u := range sizeUnits() {
		if z != 0 && uint64(z)%u.unit == 0 {
			return strconv.FormatUint(uint64(z)/u.unit, 10) + u.suffix
		}
	}
	return "0"
}

// MarshalText returns String.
func (z Size) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

// Limit is COUNT/PERIOD, a rate with burst COUNT, or a bare COUNT, a total for
// the grant's life. The zero Limit is absent.
type Limit struct {
	Count  uint64
	Period time.Duration // 0 for a total
}

// IsZero reports whether there is no limit.
func (l Limit) IsZero() bool { return l == Limit{} }

// UnmarshalText reads COUNT or COUNT/PERIOD.
func (l *Limit) UnmarshalText(text []byte) error {
	return l.parse(string(text), "100/1m or 5000", parseCount)
}

// String returns the limit as UnmarshalText reads it.
func (l Limit) String() string { return l.format(strconv.FormatUint(l.Count, 10)) }

// MarshalText returns String, and nothing for the zero Limit.
func (l Limit) MarshalText() ([]byte, error) {
	if l.IsZero() {
		return nil, nil
	}
	return []byte(l.String()), nil
}

func (l *Limit) parse(s, example string, count func(string) (uint64, error)) error {
	amount, period, isRate := strings.Cut(s, "/")
	n, err := count(amount)
	if err != nil {
		return fmt.Errorf("%q is not a limit; write COUNT/PERIOD or COUNT, as in %s", clip(s), example)
	}
	parsed := Limit{Count: n}
	if isRate {
		var d Duration
		if err := d.UnmarshalText([]byte(period)); err != nil {
			return fmt.Errorf("%q is not a limit: its period %w", clip(s), err)
		}
		parsed.Period = time.Duration(d)
	}
	*l = parsed
	return nil
}

func (l Limit) format(amount string) string {
	if l.Period == 0 {
		return amount
	}
	return amount + "/" + Duration(l.Period).String()
}

// ByteLimit is a [Limit] on bytes, written with a size: 10MiB/1m or 5GiB.
type ByteLimit Limit

// IsZero reports whether there is no limit.
func (l ByteLimit) IsZero() bool { return Limit(l).IsZero() }

// UnmarshalText reads SIZE or SIZE/PERIOD.
func (l *ByteLimit) UnmarshalText(text []byte) error {
	return (*Limit)(l).parse(string(text), "10MiB/1m or 5GiB", func(s string) (uint64, error) {
		var z Size
		err := z.UnmarshalText([]byte(s))
		return uint64(z), err
	})
}

// String returns the limit as UnmarshalText reads it.
func (l ByteLimit) String() string { return Limit(l).format(Size(l.Count).String()) }

// MarshalText returns String, and nothing for the zero ByteLimit.
func (l ByteLimit) MarshalText() ([]byte, error) {
	if l.IsZero() {
		return nil, nil
	}
	return []byte(l.String()), nil
}

var errCount = errors.New("not a whole number above 0")

// parseCount reads a whole number above 0 without sign, leading zero or
// digit separators, and below 2^63 so that it fits the arithmetic of usage.
func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, errCount
	}
	return n, nil
}
