package topology

func validate(t *Topology, places map[objectKey]place) Errors { return nil }
