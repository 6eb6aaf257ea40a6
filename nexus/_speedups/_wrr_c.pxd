# C types for _wrr_py.py, compiled as _wrr_c.
import cython


@cython.locals(turns=list, sequence=list, i=Py_ssize_t)
cpdef list build_sequence(weights)

# Credits stay within ± turns × weight: 4096 × 4096.
@cython.locals(turns=list, credit=list, sequence=list, i=Py_ssize_t, best=Py_ssize_t,
               highest=long, weight=long, earned=long, total=long)
cpdef list build_smooth_sequence(weights)
