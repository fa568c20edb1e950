package ontapsim

import (
	"net/http"
	"slices"
	"sort"
	"strings"
)

type named struct {
	Name string `json:"name"`
}

type igroupBody struct {
	UUID       string  `json:"uuid,omitempty"`
	SVM        named   `json:"svm"`
	Name       string  `json:"name"`
	Protocol   string  `json:"protocol,omitempty"`
	OSType     string  `json:"os_type,omitempty"`
	Comment    string  `json:"comment,omitempty"`
	Initiators []named `json:"initiators,omitempty"`
}

type mapBody struct {
	SVM    named `json:"svm"`
	LUN    named `json:"lun"`
	Igroup named `json:"igroup"`
}

func records[T any](w http.ResponseWriter, list []T) {
	answer(w, http.StatusOK, map[string]any{"records": list, "num_records": len(list)})
}

func (s *Sim) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/storage/luns", s.getLUNs)
	mux.HandleFunc("GET /api/protocols/san/igroups", s.getGroups)
	mux.HandleFunc("POST /api/protocols/san/igroups", s.postGroup)
	mux.HandleFunc("PATCH /api/protocols/san/igroups/{uuid}", s.patchGroup)
	mux.HandleFunc("POST /api/protocols/san/igroups/{uuid}/initiators", s.postInitiators)
	mux.HandleFunc("DELETE /api/protocols/san/igroups/{uuid}/initiators/{name}", s.deleteInitiator)
	mux.HandleFunc("GET /api/protocols/san/lun-maps", s.getMaps)
	mux.HandleFunc("POST /api/protocols/san/lun-maps", s.postMap)
	mux.HandleFunc("GET /api/network/fc/logins", s.getLogins)
	return mux
}

func (s *Sim) getLUNs(w http.ResponseWriter, _ *http.Request) {
	type lun struct {
		Name string `json:"name"`
		SVM  named  `json:"svm"`
	}
	list := make([]lun, 0, len(s.cfg.LUNs))
	for _, l := range s.cfg.LUNs {
		list = append(list, lun{l.Name, named{l.SVM}})
	}
	records(w, list)
}

func (s *Sim) getGroups(w http.ResponseWriter, r *http.Request) {
	want := r.URL.Query().Get("name")
	s.mu.Lock()
	list := []igroupBody{}
	for name, g := range s.groups {
		if want != "" && want != name {
			continue
		}
		b := igroupBody{UUID: g.uuid, SVM: named{g.svm}, Name: name, Protocol: "fcp", Comment: g.comment}
		for _, i := range g.initiators {
			b.Initiators = append(b.Initiators, named{i})
		}
		list = append(list, b)
	}
	s.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	records(w, list)
}

func (s *Sim) postGroup(w http.ResponseWriter, r *http.Request) {
	var b igroupBody
	if err := decode(r, &b); err != nil || b.Name == "" || len(b.Name) > 96 || b.OSType == "" || b.SVM.Name == "" {
		answer(w, http.StatusBadRequest, apiError("262188", "name, os_type and svm.name are required."))
		return
	}
	s.mu.Lock()
	_, exists := s.groups[b.Name]
	if !exists {
		s.next++
		g := &group{uuid: uuid(s.next), svm: b.SVM.Name, comment: b.Comment}
		for _, i := range b.Initiators {
			g.initiators = append(g.initiators, i.Name)
		}
		s.groups[b.Name] = g
	}
	s.mu.Unlock()
	if exists {
		answer(w, http.StatusConflict, apiError("5374738", "An initiator group with this name already exists."))
		return
	}
	answer(w, http.StatusCreated, struct{}{})
}

// byUUID finds a group; the lock is held.
func (s *Sim) byUUID(id string) (string, *group) {
	for name, g := range s.groups {
		if g.uuid == id {
			return name, g
		}
	}
	return "", nil
}

// change applies f to the group named in the path and tells the world about its LUNs.
func (s *Sim) change(w http.ResponseWriter, r *http.Request, f func(*group) (status int, body any)) {
	s.mu.Lock()
	name, g := s.byUUID(r.PathValue("uuid"))
	if g == nil {
		s.mu.Unlock()
		answer(w, http.StatusNotFound, apiError("5374852", "The initiator group does not exist."))
		return
	}
	status, body := f(g)
	var touched []string
	for l, names := range s.maps {
		if slices.Contains(names, name) {
			touched = append(touched, l)
		}
	}
	s.mu.Unlock()
	s.tell(touched...)
	answer(w, status, body)
}

func (s *Sim) patchGroup(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Comment *string `json:"comment"`
	}
	if err := decode(r, &b); err != nil || b.Comment == nil || len(*b.Comment) > 254 {
		answer(w, http.StatusBadRequest, apiError("262247", "Invalid value for field \"comment\" (0 to 254 characters)."))
		return
	}
	s.change(w, r, func(g *group) (int, any) {
		g.comment = *b.Comment
		return http.StatusOK, struct{}{}
	})
}

func (s *Sim) postInitiators(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Records []named `json:"records"`
	}
	if err := decode(r, &b); err != nil || len(b.Records) == 0 {
		answer(w, http.StatusBadRequest, apiError("262188", "records is required."))
		return
	}
	s.change(w, r, func(g *group) (int, any) {
		for _, i := range b.Records {
			if slices.ContainsFunc(g.initiators, func(have string) bool { return strings.EqualFold(have, i.Name) }) {
				return http.StatusConflict, apiError("5373991", "The initiator already exists in the group.")
			}
		}
		for _, i := range b.Records {
			g.initiators = append(g.initiators, i.Name)
		}
		return http.StatusCreated, struct{}{}
	})
}

func (s *Sim) deleteInitiator(w http.ResponseWriter, r *http.Request) {
	s.change(w, r, func(g *group) (int, any) {
		before := len(g.initiators)
		if r.URL.Query().Get("allow_delete_while_mapped") != "true" {
			return http.StatusConflict, apiError("5373993", "The initiator group is mapped to a LUN.")
		}
		g.initiators = slices.DeleteFunc(g.initiators, func(i string) bool { return strings.EqualFold(i, r.PathValue("name")) })
		if len(g.initiators) == before {
			return http.StatusNotFound, apiError("5373992", "The initiator is not in the group.")
		}
		return http.StatusOK, struct{}{}
	})
}

func (s *Sim) getMaps(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	list := []mapBody{}
	for l, names := range s.maps {
		for _, n := range names {
			list = append(list, mapBody{LUN: named{l}, Igroup: named{n}, SVM: named{s.groups[n].svm}})
		}
	}
	s.mu.Unlock()
	sort.Slice(list, func(i, j int) bool {
		return list[i].LUN.Name+list[i].Igroup.Name < list[j].LUN.Name+list[j].Igroup.Name
	})
	records(w, list)
}

func (s *Sim) postMap(w http.ResponseWriter, r *http.Request) {
	var b mapBody
	if err := decode(r, &b); err != nil || b.LUN.Name == "" || b.Igroup.Name == "" {
		answer(w, http.StatusBadRequest, apiError("262188", "lun.name and igroup.name are required."))
		return
	}
	s.mu.Lock()
	status, body := http.StatusCreated, any(struct{}{})
	known := slices.ContainsFunc(s.cfg.LUNs, func(l LUN) bool { return l.Name == b.LUN.Name })
	switch {
	case !known || s.groups[b.Igroup.Name] == nil:
		status, body = http.StatusNotFound, apiError("5374875", "The LUN or initiator group does not exist.")
	case slices.Contains(s.maps[b.LUN.Name], b.Igroup.Name):
		status, body = http.StatusConflict, apiError("5374922", "The LUN is already mapped to this group.")
	default:
		s.maps[b.LUN.Name] = append(s.maps[b.LUN.Name], b.Igroup.Name)
	}
	s.mu.Unlock()
	s.tell(b.LUN.Name)
	answer(w, status, body)
}

func (s *Sim) getLogins(w http.ResponseWriter, _ *http.Request) {
	type login struct {
		Initiator struct {
			WWPN string `json:"wwpn"`
		} `json:"initiator"`
	}
	list := []login{}
	for _, wwpn := range s.cfg.Backend.Logins() {
		var l login
		l.Initiator.WWPN = wwpn
		list = append(list, l)
	}
	records(w, list)
}
