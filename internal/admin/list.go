package admin

// NonNil returns a list that is not nil, so that its JSON is [] and not null.
func NonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
